"""What can be seen of a helper from outside.

======================  ===========================================================================
:mod:`~.log`            events and their levels
:mod:`~.logformats`     as JSON, for journald
:mod:`~.openlog`        to stderr, a file, journald
:mod:`~.failures`       what nobody expected, told in one line
:mod:`~.phases`         the seconds in reading, decoding, injecting, punching
:mod:`~.statsfile`      the file of --stats
======================  ===========================================================================
"""
