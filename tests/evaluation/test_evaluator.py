"""Evaluation against loops over users: what is ranked, averaged, counted, labelled and refused."""

import math
from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.types import TEST, TRAIN, VALID, DataError, Dataset, Method, SettingError

USERS, ITEMS, CLIENTS = 60, 45, 13
KS = (2, 10, 70)
BY_TABLE = Method(
    init=None,
    step=None,
    prepare=lambda state, data: state + data,
    score=lambda served, users: served[users],
)


def dataset(clients=True, seed=0):
    """Users with 1 to 40 items, some of them with none in valid or test."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        for place, item in enumerate(rng.permutation(ITEMS)[: rng.integers(1, 41)]):
            rows.append((user, item, TRAIN if place == 0 else rng.choice(3, p=(0.5, 0.1, 0.4))))
    rows = pd.DataFrame(rows, columns=["user", "item", "split"])
    if clients:
        rows["client"] = rng.integers(CLIENTS, size=USERS)[rows.user]
    items, users = pd.DataFrame({"item": range(ITEMS)}), pd.DataFrame({"user": range(USERS)})
    return Dataset("made up", rows.sample(frac=1, random_state=seed), items, users)


def table(seed=1):
    """Scores [U, I] of 8 levels: many ties."""
    return np.random.default_rng(seed).integers(8, size=(USERS, ITEMS)).astype(np.float32)


def run(plan, scores, **options):
    return evaluator(BY_TABLE, plan, **options)(jnp.asarray(scores), jnp.float32(0))


@cache
def ranked():
    """The result that several tests look at: every user of the test split, all metrics."""
    return run(make_plan(dataset(), TEST, ks=KS), table())


def slow_user(scores, targets, rivals, ks):
    """All metrics of one user, ties against the targets."""
    ordered = sorted([*rivals, *targets], key=lambda i: (-scores[i], i in targets))
    ranks = sorted(ordered.index(i) + 1 for i in targets)
    values = {"MRR": 1 / ranks[0]}
    for k in ks:
        hits = [r for r in ranks if r <= k]
        full = min(len(ranks), k)
        ideal = sum(1 / math.log2(1 + j) for j in range(1, full + 1))
        values |= {
            f"HR@{k}": float(bool(hits)),
            f"Recall@{k}": len(hits) / len(ranks),
            f"Precision@{k}": len(hits) / k,
            f"meanF1@{k}": 2 * len(hits) / (len(ranks) + k),
            f"NDCG@{k}": sum(1 / math.log2(1 + r) for r in hits) / ideal,
            f"MAP@{k}": sum(j / r for j, r in enumerate(hits, 1)) / full,
        }
    return values


def slow_table(data, split, scores, mask_history=True):
    rows, users = data.interactions, []
    for user in range(USERS):
        own = rows[rows.user == user]
        targets = own.item[own.split == split].tolist()
        if targets:
            seen = {*own.item[mask_history & (own.split < split)], *targets}
            rivals = [i for i in range(ITEMS) if i not in seen]
            users.append({"user": user} | slow_user(scores[user], targets, rivals, KS))
    return pd.DataFrame(users)


@pytest.mark.parametrize(("split", "mask_history"), [(VALID, True), (TEST, True), (TEST, False)])
def test_full_ranking_equals_the_loops(split, mask_history):
    data, scores = dataset(), table()
    found = run(make_plan(data, split, ks=KS, block=8, mask_history=mask_history), scores)
    expected = slow_table(data, split, scores, mask_history)
    assert 0 < len(expected) < USERS
    pd.testing.assert_frame_equal(
        found.per_user, expected[found.per_user.columns], check_dtype=False, rtol=1e-5
    )
    for name in expected.columns.drop("user"):
        values = expected[name]
        assert found.means[name] == pytest.approx(values.mean(), rel=1e-5)
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert found.means[f"{name}/se"] == pytest.approx(error, rel=1e-5)


def test_f1_is_that_of_the_averages_and_its_error_follows_the_gradient():
    found = ranked()
    for k in KS:
        pairs = found.per_user[[f"Precision@{k}", f"Recall@{k}"]].to_numpy()
        f1 = lambda pair: 2 * pair[0] * pair[1] / (pair[0] + pair[1])
        mean, step = pairs.mean(0), 1e-5
        slope = [(f1(mean + step * e) - f1(mean - step * e)) / (2 * step) for e in np.eye(2)]
        assert found.means[f"F1@{k}"] == pytest.approx(f1(mean))
        error = math.sqrt(slope @ np.cov(pairs.T) @ np.array(slope) / len(pairs))
        assert found.means[f"F1@{k}/se"] == pytest.approx(error, rel=1e-6)
        assert found.means[f"F1@{k}"] != pytest.approx(found.means[f"meanF1@{k}"])


def test_the_spread_over_clients_is_that_of_their_means():
    data, found = dataset(), ranked()
    client = data.interactions.groupby("user").client.first()
    each = found.per_user.groupby(found.per_user.user.map(client))
    assert CLIENTS > 10
    for name in ("NDCG@10", "Recall@2"):
        means = sorted(each[name].mean())
        assert found.means[f"{name}/client_std"] == pytest.approx(np.std(means))
        assert found.means[f"{name}/client_worst10%"] == pytest.approx((means[0] + means[1]) / 2)


def test_lists_give_coverage_and_gini():
    data, scores = dataset(), table()
    rows = data.interactions
    found = ranked().means
    for k in KS:
        counts = np.zeros(ITEMS)
        for user in rows.user[rows.split == TEST].unique():
            seen = set(rows.item[(rows.user == user) & (rows.split < TEST)])
            shown = [i for i in range(ITEMS) if i not in seen]
            counts[sorted(shown, key=lambda i: (-scores[user, i], i))[:k]] += 1
        difference = np.abs(counts[:, None] - counts).mean()
        assert found[f"coverage@{k}"] == pytest.approx(np.mean(counts > 0))
        assert found[f"Gini@{k}"] == pytest.approx(difference / (2 * counts.mean()), rel=1e-5)
    assert found[f"coverage@{KS[0]}"] < 1


def test_without_lists_or_clients_their_values_are_left_out():
    found = run(make_plan(dataset(clients=False), TEST), table(), lists=False).means
    assert not [name for name in found if name.startswith(("coverage", "Gini"))]
    assert not [name for name in found if "client" in name]


@pytest.mark.parametrize(("block", "candidates"), [(1, 0), (7, 0), (4, 3)])
def test_blocks_and_buckets_do_not_matter(block, candidates):
    data, scores = dataset(), table()
    plans = [make_plan(data, TEST, ks=KS, candidates=candidates, block=b) for b in (block, 1000)]
    assert len(plans[0].buckets) > len(plans[1].buckets) == 1
    many, one = (run(plan, scores) for plan in plans)
    pd.testing.assert_frame_equal(many.per_user, one.per_user, rtol=1e-6)
    assert many.means == pytest.approx(one.means, rel=1e-6)


def drawn(plan):
    """The listed items of each user of a plan."""
    pairs = {}
    for bucket in plan.buckets:
        for users, rows, items in zip(bucket.users, bucket.row, bucket.item, strict=True):
            for row, item in zip(rows.tolist(), items.tolist(), strict=True):
                if row < len(users):
                    pairs.setdefault(int(users[row]), []).append(item)
    return pairs


def test_negatives_are_distinct_unseen_and_fixed_by_seed_and_user():
    data = dataset()
    plan = lambda **options: drawn(make_plan(data, candidates=5, **{"split": TEST} | options))
    negatives = plan()
    interacted = data.interactions.groupby("user").item.agg(set)
    for user, items in negatives.items():
        assert len(items) == len(set(items)) == 5
        assert not interacted[user].intersection(items)
    assert plan(block=3) == negatives
    assert plan(seed=1) != negatives
    valid = plan(split=VALID)
    both = set(valid) & set(negatives)
    assert len(both) > 10
    assert all(valid[user] == negatives[user] for user in both)


def test_the_datas_own_lists_are_taken_from_their_start_without_the_target():
    rows = pd.DataFrame({"user": [0, 0, 1, 1], "item": [4, 1, 2, 0], "split": [TRAIN, TEST] * 2})
    users, items = pd.DataFrame({"user": range(2)}), pd.DataFrame({"item": range(6)})
    lists = pd.DataFrame({"user": [1] * 4 + [0] * 4, "item": [5, 3, 1, 0, 1, 4, 5, 2]})
    data = Dataset("lists", rows, items, users, lists)
    found = drawn(make_plan(data, TEST, ks=(2,), candidates=3, listed=True))
    assert found == {0: [4, 5, 2], 1: [5, 3, 1]}
    with pytest.raises(SettingError, match="candidates = 4: the list of user 0 has only 3"):
        make_plan(data, TEST, candidates=4, listed=True)
    with pytest.raises(DataError, match="lists: listed = True needs lists of candidates"):
        make_plan(replace(data, candidates=None), TEST, candidates=3, listed=True)


def test_the_datas_own_lists_keep_to_the_domain_and_to_known_items():
    rows = pd.DataFrame({"user": [0, 0, 1, 1], "item": [2, 1, 3, 6], "split": [TRAIN, TEST] * 2})
    rows = pd.concat([rows, pd.DataFrame({"user": 1, "item": [1, 5, 6], "split": TRAIN})])
    rows = rows.drop_duplicates(["user", "item"]).reset_index(drop=True)
    items = pd.DataFrame({"item": range(8), "domain": np.arange(8) % 2})
    lists = pd.DataFrame({"user": [0] * 6, "item": [4, 7, 2, 3, 1, 5]})
    data = Dataset("lists", rows, items, pd.DataFrame({"user": range(2)}), lists)
    only = (rows["user"] == 0).to_numpy()
    find = lambda number, **more: drawn(
        make_plan(data, TEST, ks=(2,), candidates=number, listed=True, only=only, **more)
    )
    assert find(3, ranking="domains") == {0: [7, 3, 5]}
    assert find(3, ranking="rows", catalogue="known") == {0: [2, 3, 5]}
    assert find(3, catalogue="known") == {0: [2, 3, 5]}
    assert find(2, ranking="domains", catalogue="known") == {0: [3, 5]}
    with pytest.raises(SettingError, match="candidates = 3: the list of user 0 has only 2"):
        find(3, ranking="domains", catalogue="known")


def test_a_known_catalogue_without_anything_to_find_is_refused():
    rows = pd.DataFrame({"user": [0, 0], "item": [0, 1], "split": [TRAIN, TEST]})
    items, users = pd.DataFrame({"item": range(3)}), pd.DataFrame({"user": [0]})
    message = r"no test rows \(2\) with an item of an earlier split: make that part larger"
    with pytest.raises(DataError, match=message):
        make_plan(Dataset("new", rows, items, users), TEST, catalogue="known")


@pytest.mark.parametrize("ranking", ["users", "rows", "domains"])
@pytest.mark.parametrize("candidates", [0, 3])
def test_a_known_catalogue_has_no_item_without_an_earlier_row(ranking, candidates):
    data = dataset()
    rows, scores = data.interactions, table()
    rows = rows[rows.groupby("user").cumcount() < 15]
    known = np.unique(rows.item[rows.split < TEST])
    rows = rows[~rows.item.isin(known[::3]) | (rows.split == TEST)]  # a third is new in test
    known = np.unique(rows.item[rows.split < TEST])
    data = replace(data, interactions=rows, items=data.items.assign(domain=np.arange(ITEMS) % 2))
    options = {"ks": (5,), "candidates": candidates, "ranking": ranking, "catalogue": "known"}
    plan = make_plan(data, TEST, **options)
    found = run(plan, scores).per_user
    held = rows[(rows.split == TEST) & rows.item.isin(known)]
    assert 0 < len(held) < (rows.split == TEST).sum()
    if ranking != "users":
        assert sorted(found.item) == sorted(held.item)
    if candidates:
        assert set(np.concatenate([*drawn(plan).values()])) <= set(known)
        return
    name = next(column for column in found if column.startswith("MRR"))
    for line in found.itertuples():
        own = rows[rows.user == line.user]
        targets = {line.item} if ranking != "users" else set(held.item[held.user == line.user])
        rivals = set(known) - set(own.item[own.split < TEST]) - targets
        if ranking == "domains":
            rivals = {item for item in rivals if item % 2 == line.item % 2}
        expected = slow_user(scores[line.user], targets, rivals, (5,))["MRR"]
        assert getattr(line, name) == pytest.approx(expected, rel=1e-5)


def test_every_unseen_item_is_drawn_equally_often():
    rows = pd.DataFrame({"user": np.arange(4000), "item": 3, "split": TEST})
    items = pd.DataFrame({"item": range(7)})
    data = Dataset("one each", rows, items, rows[["user"]])
    counts = np.bincount(np.concatenate([*drawn(make_plan(data, TEST, candidates=2)).values()]))
    assert counts[3] == 0
    expected = 4000 * 2 / 6
    others = np.delete(counts, 3)
    # Chi-squared of 5 degrees of freedom is below 20.5 with probability .999.
    assert ((others - expected) ** 2 / expected).sum() < 20.5


def test_sampled_ranking_is_among_the_negatives_and_says_so():
    data, scores = dataset(), table()
    plan = make_plan(data, TEST, ks=KS, candidates=5)
    found, rows = run(plan, scores), data.interactions
    for row in found.per_user.to_dict("records"):
        targets = rows.item[(rows.user == row["user"]) & (rows.split == TEST)].tolist()
        expected = slow_user(scores[row["user"]], targets, drawn(plan)[row["user"]], KS)
        for name, value in expected.items():
            assert row[f"{name}(5 negatives)"] == pytest.approx(value, rel=1e-5)
    assert all("(5 negatives)" in name for name in found.means)
    assert {"HR@10(5 negatives)", "HR@10(5 negatives)/se"} <= set(found.means)
    assert not [name for name in found.means if name.startswith(("coverage", "Gini"))]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_names_the_first_user(bad):
    data, scores = dataset(), table()
    users = np.sort(data.interactions.user[data.interactions.split == TEST].unique())
    scores[users[[4, 9]], 7] = bad
    with pytest.raises(FloatingPointError, match=rf"user {users[4]} .* 2 of {len(users)} users"):
        run(make_plan(data, TEST, block=8), scores)


def test_a_score_of_minus_infinity_is_a_score():
    lowest = np.where(table() == 0, -np.inf, table())
    found = run(make_plan(dataset(), TEST, ks=KS), lowest)
    pd.testing.assert_frame_equal(found.per_user, ranked().per_user)


def test_the_program_is_traced_once():
    traces = []

    def score(served, users):
        traces.append(users.shape)
        return served[users]

    plan = make_plan(dataset(), TEST, block=8)
    evaluate = evaluator(BY_TABLE._replace(score=score), plan)
    first = evaluate(jnp.asarray(table()), jnp.float32(0))
    number = len(traces)
    again = evaluate(jnp.asarray(table(2)), jnp.float32(0))
    assert len(traces) == number
    assert again.means != first.means


def test_a_single_user_has_no_standard_error():
    rows = pd.DataFrame({"user": 0, "item": [0, 1], "split": [TRAIN, TEST]})
    data = Dataset("alone", rows, pd.DataFrame({"item": range(3)}), pd.DataFrame({"user": [0]}))
    found = run(make_plan(data, TEST, ks=(1,)), np.array([[9.0, 1.0, 0.0]])).means
    assert found["NDCG@1"] == found["F1@1"] == 1
    assert math.isnan(found["NDCG@1/se"])


def test_data_without_the_split_is_refused():
    data = dataset()
    rows = data.interactions
    without = lambda rows: Dataset("made up", rows, data.items, data.users)
    with pytest.raises(DataError, match=r"made up: .* column split"):
        make_plan(without(rows.drop(columns="split")), TEST)
    with pytest.raises(DataError, match=r"made up: .* no test rows"):
        make_plan(without(rows[rows.split != TEST]), TEST)


@pytest.mark.parametrize("bad", [{"ks": ()}, {"ks": (0, 5)}, {"block": 0}, {"candidates": -1}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        make_plan(dataset(), TEST, **bad)


def test_more_negatives_than_a_user_has_unseen_items_are_refused():
    data = dataset()
    seen = data.interactions.groupby("user").size()
    tested = data.interactions.user[data.interactions.split == TEST].unique()
    few = {user: ITEMS - seen[user] for user in tested if ITEMS - seen[user] < 10}
    with pytest.raises(SettingError, match="candidates = 10: user") as raised:
        make_plan(data, TEST, candidates=10)
    assert any(
        f"user {user} has only {left} items" in str(raised.value) for user, left in few.items()
    )


def with_domains():
    data = dataset()
    rows = data.interactions.groupby("user").head(12)  # of each domain enough are left to draw
    return replace(data, interactions=rows, items=data.items.assign(domain=np.arange(ITEMS) % 3))


@pytest.mark.parametrize("ranking", ["rows", "domains"])
@pytest.mark.parametrize("candidates", [0, 3])
def test_ranking_each_held_out_row_by_itself_equals_the_loops(ranking, candidates):
    data, scores = with_domains(), table()
    plan = make_plan(data, TEST, ks=KS, block=8, ranking=ranking, candidates=candidates)
    found, rows = run(plan, scores), data.interactions
    suffix = f"({candidates} negatives)" if candidates else ""
    held_out = rows[rows.split == TEST].sort_values(["user", "item"])
    assert found.per_user[["user", "item"]].to_numpy().tolist() == (
        held_out[["user", "item"]].to_numpy().tolist()
    )
    shown = listed_for_lines(plan)
    for row in found.per_user.to_dict("records"):
        user, item = row["user"], row["item"]
        pool = [i for i in range(ITEMS) if ranking == "rows" or i % 3 == item % 3]
        own = rows[rows.user == user]
        if candidates:
            rivals = shown[user, item]
            assert len(set(rivals)) == candidates
            assert set(rivals) <= set(pool) - set(own.item)
        else:
            rivals = [i for i in pool if i not in {*own.item[own.split < TEST], item}]
        for name, value in slow_user(scores[user], [item], rivals, KS).items():
            assert row[f"{name}{suffix}"] == pytest.approx(value, rel=1e-5), name


def listed_for_lines(plan):
    """The listed items of each line (user, item) of a plan that ranks rows."""
    pairs, lines = {}, iter(plan.lines[["user", "item"]].to_numpy().tolist())
    for bucket in plan.buckets:
        for users, rows, items in zip(bucket.users, bucket.row, bucket.item, strict=True):
            keys = [tuple(next(lines)) for _ in users]
            for row, item in zip(rows.tolist(), items.tolist(), strict=True):
                if row < len(users):
                    pairs.setdefault(keys[row], []).append(item)
    return pairs


@pytest.mark.parametrize("ranking", ["rows", "domains"])
def test_a_method_that_ranks_lists_is_measured_as_one_that_scores_all_items(ranking):
    asked = []

    def rank(served, users, lists):
        asked.append((users, lists))
        return jnp.take_along_axis(served[users], lists, axis=1)

    scores = np.random.default_rng(3).permutation(USERS * ITEMS).reshape(USERS, ITEMS)  # no ties
    plan = make_plan(with_domains(), TEST, ks=KS, block=8, ranking=ranking, candidates=3)
    listed = evaluator(BY_TABLE._replace(rank=rank), plan)
    found = listed(jnp.asarray(scores), jnp.float32(0))
    expected = run(plan, scores)
    pd.testing.assert_frame_equal(found.per_user, expected.per_user, rtol=1e-6)
    assert found.means == pytest.approx(expected.means, rel=1e-6)
    ((users, lists),) = asked
    shown, rows = listed_for_lines(plan), plan.lines[plan.lines.user >= 0]
    for user, row, item in zip(users, lists.tolist(), rows["item"], strict=True):
        assert row == sorted([item, *shown[user, item]])  # the place of the target tells nothing


def test_a_tie_in_a_list_stands_before_the_target():
    rank = lambda served, users, lists: np.zeros(lists.shape)
    plan = make_plan(with_domains(), TEST, ks=(1, 4), ranking="rows", candidates=3)
    found = evaluator(BY_TABLE._replace(rank=rank), plan)(jnp.zeros(1), jnp.float32(0))
    assert found.means["HR@1(3 negatives)"] == 0
    assert found.means["MRR(3 negatives)"] == 0.25


@pytest.mark.parametrize("options", [{"ranking": "rows"}, {"candidates": 3}])
def test_a_method_that_ranks_lists_needs_lists_with_one_target(options):
    method = BY_TABLE._replace(rank=lambda served, users, lists: lists)
    with pytest.raises(SettingError, match="this method ranks short lists"):
        evaluator(method, make_plan(with_domains(), TEST, **options))


def test_only_some_rows_may_be_targets():
    data = with_domains()
    only = data.interactions["item"].to_numpy() % 2 == 0
    found = run(make_plan(data, TEST, ranking="rows", only=only), table()).per_user
    assert len(found) == (only & (data.interactions.split == TEST)).sum()
    assert (found["item"] % 2 == 0).all()


def test_domains_that_are_not_known_are_refused():
    with pytest.raises(DataError, match="needs a column 'domain' of the items"):
        make_plan(dataset(), TEST, ranking="domains")
