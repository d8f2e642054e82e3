"""What Python's os module lacks.

======================  ===========================================================================
:mod:`~.syscalls`       scattered reads and writes, huge pages, holes
:mod:`~.zeros`          zeros that can be written from without taking any memory
:mod:`~.pidfd`          a process that can be told from the next one with its number
:mod:`~.procfs`         what /proc says of a process
:mod:`~.pipes`          every byte of a pipe, blocking or not
:mod:`~.descriptors`    descriptors let go, one or all of them
:mod:`~.signals`        signals passed on to another process
======================  ===========================================================================
"""
