"""What the offline commands do with whole directories of images.

==========================  =======================================================================
:mod:`~.compress`           what compressing makes of a directory
:mod:`~.decompress`         what decompressing makes of one
:mod:`~.convert_directory`  carries either out: into a copy, or in place, all at once
:mod:`~.convert_pagemap`    the same for the pages of one process
:mod:`~.convert_columns`    the same for very many entries, none of them odd
:mod:`~.encode_entries`     pagemap entries, compressed by all cores
:mod:`~.expand_entries`     pagemap entries, decoded by all cores
:mod:`~.check`              is every page there, and whole
:mod:`~.dedup`              what a chain of dumps no longer needs
:mod:`~.summary`            what is in a directory
:mod:`~.picture`            the same, drawn
:mod:`~.switch`             several files of a directory replaced at once
:mod:`~.files`              files copied and written so that they last
:mod:`~.parallel`           work in all threads, results in order
==========================  =======================================================================
"""
