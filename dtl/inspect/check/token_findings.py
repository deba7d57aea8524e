"""Problems of the tokens: truncated targets, a missing EOS token, unknown tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dtl.inspect.check.findings import Finding, create_finding
from dtl.inspect.check.token_stats import TokenStats

MAX_SPECIAL_SHOWN = 3
TOLERATED_FRACTION = 0.01  # of rows truncated, of targets without EOS, of tokens unknown
FATAL_LOST_TARGETS_FRACTION = 0.2  # of rows whose target is truncated completely


def find_truncation(stats: TokenStats) -> Iterator[Finding]:
    """Yield findings for truncated rows and targets, with a limit that would be enough."""
    for option, locations in stats.truncated.items():
        if len(locations) > TOLERATED_FRACTION * stats.sampled:
            readable = stats.model_limits[option]
            is_option = stats.limits[option] <= readable
            limit = f"task.{option}" if is_option else f"the model's limit of {readable} tokens"
            fix = _suggest_limit(stats, option, "shorten the rows")
            problem = f"rows are truncated at {limit}"
            yield create_finding("truncated", locations, stats.sampled, problem, fix)
    if not stats.lengths:
        return
    option = list(stats.lengths)[-1]  # the limit of the target is the last option
    if lost := stats.lost_targets:
        yield create_finding(
            "lost_targets",
            lost,
            stats.sampled,
            "rows have their complete target beyond the limit",
            _suggest_limit(stats, option, "shorten the prompts"),
            is_fatal=len(lost) > FATAL_LOST_TARGETS_FRACTION * stats.sampled,
        )
    if len(stats.truncated_targets) > TOLERATED_FRACTION * stats.sampled:
        problem = "rows have a truncated target"
        fix = _suggest_limit(stats, option, "shorten the rows")
        yield create_finding(
            "truncated_targets", stats.truncated_targets, stats.sampled, problem, fix
        )


def find_token_problems(stats: TokenStats) -> Iterator[Finding]:
    """Yield findings for targets without an EOS token and for unknown tokens."""
    if len(stats.missing_eos) > TOLERATED_FRACTION * stats.targets:
        problem = "targets have no supervised EOS token, so that the model does not learn to stop"
        fix = "use a tokenizer or chat template that adds an EOS token"
        if stats.append_eos is False:
            fix = f"set task.append_eos=true, or {fix}"
        yield create_finding("no_eos", stats.missing_eos, stats.targets, problem, fix)
    if stats.unknown > TOLERATED_FRACTION * stats.total:
        problem = f"rows have unknown tokens ({stats.unknown / stats.total:.1%} of all tokens)"
        fix = "use a model whose tokenizer supports this language and script"
        yield create_finding("unknown_tokens", stats.unknown_locations, stats.sampled, problem, fix)


def find_special_tokens(stats: TokenStats, *, can_read_as_text: bool) -> Iterator[Finding]:
    """Yield a finding for special tokens that texts spell out."""
    if not stats.special_locations:
        return
    shown = ", ".join(sorted(stats.special_texts)[:MAX_SPECIAL_SHOWN])
    problem = f"rows spell out special tokens ({shown}), which are read as tokens, not as text"
    fix = "set task.special_tokens=text, or to tokens if this is intended"
    yield create_finding(
        "special_tokens",
        stats.special_locations,
        stats.rows,
        problem,
        fix if can_read_as_text else "remove them from the texts",
    )


def recommend_limit(lengths: Sequence[int]) -> int:
    """Return the limit that truncates at most 1% of the rows, rounded up to a multiple of 8."""
    return int(-(-np.percentile(lengths, 99, method="higher") // 8) * 8)


def _suggest_limit(stats: TokenStats, option: str, alternative: str) -> str:
    """Return the fix that raises a limit as far as the model can read."""
    needed, readable = recommend_limit(stats.lengths[option]), stats.model_limits[option]
    if needed <= readable:
        return f"set task.{option}={needed}, or {alternative}"
    alternative = f"{alternative}, or use a model that reads {needed} tokens"
    if stats.limits[option] >= readable:
        return alternative
    return f"set task.{option}={readable}, and {alternative}"
