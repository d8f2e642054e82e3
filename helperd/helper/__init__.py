"""The command line of a helper.

======================  ===========================================================================
:mod:`~.direct`         a helper that serves its pipes itself
:mod:`~.attach`         one that has a server do it
:mod:`~.protowire`      the few messages of the server's protocol, without protobuf's import
:mod:`~.usage`          the text of --help
======================  ===========================================================================
"""
