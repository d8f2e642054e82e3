"""A request, carried out: planned in chunks, decoded, written, let go.

======================  ===========================================================================
:mod:`~.plan`           cuts a request into chunks
:mod:`~.engine`         deals the chunks to threads; the first error wins
:mod:`~.readahead`      an image on a disk, read before it is needed
:mod:`~.write`          the decoded pages of a chunk, written into the target
:mod:`~.thp`            huge pages for what is about to be written
:mod:`~.release`        consumed payload dropped from the page cache, or punched
======================  ===========================================================================
"""
