"""``helperd page-server``: receives the pages of a stock CRIU's dump, stores them compressed.

======================  ===========================================================================
:mod:`~.storage`        how pages are to be stored, and where
:mod:`~.connection`     bytes from the client, straight into the buffers they are encoded from
:mod:`~.pieces`         pages of several entries in one buffer, as much as is encoded at once
:mod:`~.intake`         messages to pieces; what the client asks is answered
:mod:`~.store`          encoded pieces to images
:mod:`~.parents`        what the directory of the dump before has
:mod:`~.session`        one client, from its first byte to its status
:mod:`~.dedup`          what the parents need not keep
:mod:`~.source`         pages of images, by address
:mod:`~.fetched`        a client that fetches pages
:mod:`~.client`         what a client gets, and what is said of it
:mod:`~.listener`       a process for each client
:mod:`~.command`        a dump and its page server in one
======================  ===========================================================================
"""
