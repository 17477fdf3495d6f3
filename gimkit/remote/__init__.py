"""Everything particular to NDIF: what travels with a trace, how it is sent, and the messages when something fails."""

from gimkit.remote.trace import SHIPPED, in_session, in_trace, register, where

__all__ = ["SHIPPED", "in_session", "in_trace", "register", "where"]
