"""Bytes and what they mean, without any I/O: every protocol that helperd speaks.

======================  ===========================================================================
:mod:`~.pipe`           requests and answers of a restorer that cannot decode
:mod:`~.session`        between a server and its clients
:mod:`~.page_server`    between a dump or a lazy restore and a page server
:mod:`~.stream`         image streams, and the shards they travel in
:mod:`~.protobuf`       small protobuf messages, without the library's import
======================  ===========================================================================
"""
