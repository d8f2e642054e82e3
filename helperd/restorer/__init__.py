"""The other side of the pipes: a restorer client that drives helpers.

``inject`` does the whole job for one process of an image directory; ``Helper`` and
``shape_requests`` are its parts, for restore tools that map and order things themselves.
"""

from helperd.restorer.helper import Helper
from helperd.restorer.inject import InjectReport, inject
from helperd.restorer.shape import RequestShaper, shape_requests

__all__ = ["Helper", "InjectReport", "RequestShaper", "inject", "shape_requests"]
