"""``helperd serve``: everything imported once, and a session forked for each client that connects.

======================  ===========================================================================
:mod:`~.listener`       the server process: accepts, counts, forks, reaps; reads nothing of a client
:mod:`~.session`        a session process: becomes the client, then does what it asks for
:mod:`~.peer`           who a client is, and becoming it
:mod:`~.attach`         the client: a helper that has a server do it; imports nothing of the rest
:mod:`~.limits`         what sessions may take
:mod:`~.metrics`        the sums over all sessions, for Prometheus
:mod:`~.systemd`        socket activation and readiness
======================  ===========================================================================
"""
