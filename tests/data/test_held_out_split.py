from peftkit.data.held_out_split import split_held_out
from peftkit.data.rows import Rows


def test_a_share_is_held_out_with_groups_kept_together():
    rows = Rows.of([{"group": i // 3, "i": i} for i in range(30)])
    train, held_out = split_held_out(rows, 0.2, seed=1)
    assert len(held_out) == 6
    assert not {row["group"] for row in train} & {row["group"] for row in held_out}
    assert split_held_out(rows, 0.2, seed=1) == (train, held_out)
    assert split_held_out(rows, 0.2, seed=2)[1] != held_out
