"""The live line says how far a run is."""

from jaxrec.federated.byte_ledger import Ledger
from jaxrec.training.job import Progress
from jaxrec.training.progress import Line


def test_a_line_for_each_evaluation_where_there_is_no_terminal(capsys):
    with Line("toy", 20) as line:
        memory = Progress(round=5, best=0.25, best_round=5, ledger=Ledger(rounds_up=1e6))
        line.update(memory, "NDCG@10", 0.25)
        memory = memory._replace(round=10, ledger=Ledger(rounds_up=1e6, setup_down=1e6))
        line.update(memory, "NDCG@10", 0.2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "toy: round 5/20  NDCG@10 0.2500  best 0.2500 at 5  1.0 MB"
    assert second.startswith("toy: round 10/20  NDCG@10 0.2000  best 0.2500 at 5  2.0 MB")
    assert "rounds/s" in second
    assert "left" in second


def test_a_hidden_line_prints_nothing(capsys):
    with Line("toy", 20, shown=False) as line:
        line.update(Progress(round=5, best=0.25, best_round=5), "NDCG@10", 0.25)
    assert capsys.readouterr() == ("", "")
