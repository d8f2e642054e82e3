"""The processes that are written to.

======================  ===========================================================================
:mod:`~.targets`        who may be written to
:mod:`~.target`         one process: still the same, what is zero already, write to it
:mod:`~.hold`           the open descriptors that pin it
:mod:`~.mappings`       which of its memory is private and anonymous
======================  ===========================================================================
"""
