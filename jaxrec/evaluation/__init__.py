"""A split and a method's scores into metrics, on the device; tests of differences of users.

    evaluate = evaluator(method, make_plan(dataset, TEST, ks=(10,)))
    evaluate(state, data).means["NDCG@10"]

A plan says who is evaluated on what, and an evaluator is compiled once for it.
"""

from jaxrec.evaluation.evaluator import Evaluation, evaluator
from jaxrec.evaluation.plan import Plan, make_plan
from jaxrec.evaluation.significance import Test, holm, paired_test

__all__ = ["Evaluation", "Plan", "Test", "evaluator", "holm", "make_plan", "paired_test"]
