"""One helper: a restorer's pipes, served by a confined worker.

======================  ===========================================================================
:mod:`~.direct`         the command line: a helper that is spawned for one restorer
:mod:`~.session`        a worker for a restorer's pipes, and what it may ask for
:mod:`~.worker`         the request loop
:mod:`~.waiting`        a worker that is there before its session
:mod:`~.rehearsal`      the request that warms it
:mod:`~.statistics`     everything counted, for --stats and the log
:mod:`~.descriptors`    the descriptors of a session: looked at, let go
:mod:`~.answers`        answers, those of a failure included
======================  ===========================================================================
"""
