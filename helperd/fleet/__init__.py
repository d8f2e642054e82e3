"""Many checkpoints at once: a tree of them on this machine, or those of a fleet of machines.

======================  ===========================================================================
:mod:`~.find`           the checkpoints below a folder: chains as chains, archives too
:mod:`~.jobs`           one checkpoint, checked, compressed or deduplicated; never raises
:mod:`~.pool`           many of them on this machine
:mod:`~.table`          what became of each, as JSON lines; what a rerun can leave out
:mod:`~.cluster`        many of them on the workers of a Dask scheduler
======================  ===========================================================================
"""
