"""A child process that can open nothing: what it needs its parent hands it.

======================  ===========================================================================
:mod:`~.supervisor`     the parent: forks the child, attends to it, tells how it ended
:mod:`~.broker`         what the child asks its parent for
:mod:`~.confine`        what is taken from the child: capabilities, privileges, system calls
:mod:`~.seccomp`        loads filters of system calls
:mod:`~.worker_filter`  the filter of a worker that serves pipes; generated
:mod:`~.lazy_filter`    the filter of a worker that restores on demand; generated
======================  ===========================================================================
"""
