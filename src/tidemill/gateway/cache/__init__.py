"""Answers given again: an exact cache and a semantic one, partitioned by whatever could have changed the answer."""

from tidemill.gateway.cache.answers import CACHED_OPERATIONS, AnswerCache, CacheCall, CachedAnswer, CacheKey, SecondTier
from tidemill.gateway.cache.keys import Partition
from tidemill.gateway.cache.replay import read_events, stream_of, whole_of
from tidemill.gateway.cache.similar import Embed, SimilarAnswers, same_facts
from tidemill.gateway.cache.store import AnswerStore, Kept

__all__ = [
    "CACHED_OPERATIONS",
    "AnswerCache",
    "AnswerStore",
    "CacheCall",
    "CacheKey",
    "CachedAnswer",
    "Embed",
    "Kept",
    "Partition",
    "SecondTier",
    "SimilarAnswers",
    "read_events",
    "same_facts",
    "stream_of",
    "whole_of",
]
