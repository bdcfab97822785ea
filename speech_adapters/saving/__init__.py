"""Keeping adapters and heads: files that know their base and notice damage."""
