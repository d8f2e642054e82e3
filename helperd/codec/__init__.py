"""Pages and blocks: what is stored is decoded, what is dumped is encoded. Knows no process.

======================  ===========================================================================
:mod:`~.block`          one block, for whoever is not in a hurry
:mod:`~.chunk`          consecutive blocks of a pages file that are worked on at once
:mod:`~.decode`         a chunk, read and decoded into a buffer
:mod:`~.decoders`       the decoders of one thread, and which of them a chunk wants
:mod:`~.frames`         many blocks of a page each, decoded and judged in one call of liblz4
:mod:`~.encode`         pages to blocks, one thread's
:mod:`~.consumed`       which bytes of a pages file are used up
:mod:`~.liblz4`         the functions of liblz4
:mod:`~.libblosc`       many pages in one call of libblosc
:mod:`~.libraries`      where those two are found
======================  ===========================================================================
"""
