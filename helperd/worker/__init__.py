"""The process that serves the pipes, and its parent.

======================  ===========================================================================
:mod:`~.supervisor`     the parent: forks the worker, attends to it, tells how it ended
:mod:`~.broker`         what the parent opens for the confined worker
:mod:`~.worker`         the request loop
:mod:`~.descriptors`    the descriptors of a session: looked at, let go
:mod:`~.answers`        answers, those of a failure included
:mod:`~.pipes`          every byte of a pipe
======================  ===========================================================================
"""
