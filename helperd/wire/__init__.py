"""Bytes and what they mean, without any I/O: every protocol that helperd speaks.

======================  ===========================================================================
:mod:`~.pipe`           requests and answers of a restorer that cannot decode
:mod:`~.session`        between a server and its clients
:mod:`~.page_messages`  the messages between a dump, or a lazy restore, and a page server
:mod:`~.page_server`    what a page server receives
:mod:`~.page_client`    what a client of a page server asks for, and receives
:mod:`~.page_feed`      what both have in common: a byte stream in headers and payload
:mod:`~.lazy`           between a lazy restore and its daemon
:mod:`~.stream`         the sockets of image streams
:mod:`~.shards`         the shards that image streams travel in
:mod:`~.protobuf`       small protobuf messages, without the library's import
======================  ===========================================================================
"""
