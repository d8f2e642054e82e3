#!/usr/bin/env python3
"""A restore tool: fill a process's memory from the images of a compressed dump.

Usage: restore.py DIRECTORY IMAGE_PID PID [SOCKET]

PID must have mapped what IMAGE_PID had. SOCKET is where a `helperd serve` listens: that is warm.
"""

import sys

from helperd.images.chain import resolve
from helperd.images.directory import ImageDirectory
from helperd.restorer import Helper, shape_requests

directory, image_pid, pid, *socket = sys.argv[1:]
extents = list(resolve(ImageDirectory(directory), pid=int(image_pid)))
command = ("helperd", "attach", "--socket", *socket) if socket else ("helperd",)
with Helper(extents[0].pages_path, target=int(pid), command=command) as helper:
    written = sum(helper.request(request) for request in shape_requests(extents, int(pid)))
print(f"{written} bytes that are not zero")
