"""A diff, applied to the old value, gives the new one."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from agentdb.states.diff import Change, diff_values
from agentdb.storage.values import encode_value

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, float("nan")])
    | st.sampled_from("ab")
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from("abcd"), inner) | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


def apply(value: object, changes: list[Change]) -> object:
    holder = [copy.deepcopy(value)]
    for change in changes:
        *parents, last = (0, *change.path)
        at = holder
        for step in parents:
            at = at[step]
        if change.op == "remove":
            assert encode_value(at.pop(last)) == encode_value(change.old)
        elif change.op == "add" and isinstance(at, list):
            at.insert(last, change.new)
        else:
            assert change.op == "add" or encode_value(at[last]) == encode_value(change.old)
            assert (change.op == "add") == (isinstance(at, dict) and last not in at)
            at[last] = copy.deepcopy(change.new)
    return holder[0]


def in_order(value: object) -> object:
    """A value whose dicts are sorted: their order is no difference."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return type(value)(map(in_order, value)) if isinstance(value, list | tuple) else value


@given(values, values)
def test_a_diff_leads_from_one_value_to_the_other(old, new):
    changes: list[Change] = []
    diff_values(old, new, (), changes)
    assert encode_value(in_order(apply(old, changes))) == encode_value(in_order(new))


@given(values)
def test_equal_values_have_no_diff(value):
    changes: list[Change] = []
    diff_values(value, in_order(copy.deepcopy(value)), (), changes)
    assert encode_value(in_order(apply(value, changes))) == encode_value(in_order(value))
