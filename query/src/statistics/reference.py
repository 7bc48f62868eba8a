"""Makes the reference results of the tests, with SciPy and statsmodels: python3 reference.py in this folder."""

import itertools
import random
from fractions import Fraction
from math import comb

import numpy
import statsmodels
from statsmodels.stats.contingency_tables import StratifiedTable, mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

random.seed(20261127)
VERSION = f"statsmodels {statsmodels.__version__}"


def size(limit):
    return int(10 ** random.uniform(0, limit))


def write(name, header, rows):
    with open(name, "w") as out:
        print(f"# {header}", file=out)
        for row in rows:
            print(",".join(repr(x.item() if hasattr(x, "item") else x) for x in row), file=out)


def group(limit):
    everything = size(limit)
    return min(everything, int(everything * random.choice([0, 1, random.random(), random.random() ** 4]))), everything


def of_pairs():
    for _ in range(1000):
        first, second = size(3.5) - 1, size(3.5) - 1
        yield first, second, mcnemar([[0, first], [second, 0]], exact=True).pvalue


def of_intervals():
    for _ in range(1000):
        (a, n), (b, m) = group(4), group(4)
        low, high = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff", alpha=0.05)
        yield a, n, b, m, low, high


def of_discovery():
    for _ in range(200):
        p_values = sorted(random.random() ** random.choice([1, 3, 9]) for _ in range(size(1.8)))
        yield (*p_values, *multipletests(p_values, method="fdr_bh")[1])


def strata(limit):
    return [(*group(limit), *group(limit)) for _ in range(3)]


def of_strata():
    made = 0
    while made < 1000:
        rows = strata(3.5)
        tables = [numpy.array([[a, n - a], [b, m - b]], dtype=float) for a, n, b, m in rows]
        if not all(0 < table[:, 0].sum() < table.sum() for table in tables):
            continue
        made += 1
        yield (*sum(rows, ()), StratifiedTable(tables).test_null_odds(correction=False).pvalue)


def of_exact_strata():
    """The sum over all tables with the margins, in exact arithmetic."""
    for _ in range(200):
        rows = strata(1.2)
        tables = []
        for a, n, b, m in rows:
            found = a + b
            possible = range(max(0, found - m), min(found, n) + 1)
            tables.append([(x, Fraction(comb(n, x) * comb(m, found - x), comb(n + m, found))) for x in possible])
        sums = {}
        for combination in itertools.product(*tables):
            total = sum(x for x, _ in combination)
            probability = combination[0][1] * combination[1][1] * combination[2][1]
            sums[total] = sums.get(total, 0) + probability
        observed = sums[sum(row[0] for row in rows)]
        yield (*sum(rows, ()), float(sum(p for p in sums.values() if p <= observed)))


def of_tails():
    """The sum of the probabilities, in exact arithmetic."""
    for _ in range(500):
        everything = size(2.7)
        found = random.randint(0, everything)
        share = random.choice([random.random(), random.random() ** 4])
        p = Fraction(share)
        tail = sum(comb(everything, x) * p**x * (1 - p) ** (everything - x) for x in range(found, everything + 1))
        yield found, everything, share, float(tail)


write("binomial_reference.csv", "found, all, share, probability of at least so many: in exact arithmetic", of_tails())
write("mcnemar_reference.csv", f"first only, second only, p-value: {VERSION}, mcnemar(exact=True)", of_pairs())
write(
    "interval_reference.csv",
    f"found, all, found, all, low, high: {VERSION}, confint_proportions_2indep(method='newcomb')",
    of_intervals(),
)
write("discovery_reference.csv", f"p-values, then q-values: {VERSION}, multipletests('fdr_bh')", of_discovery())
write(
    "stratified_reference.csv",
    f"found, all, found, all of three strata, p-value: {VERSION}, StratifiedTable.test_null_odds",
    of_strata(),
)
write(
    "stratified_exact_reference.csv",
    "found, all, found, all of three strata, p-value: the sum over all tables in exact arithmetic",
    of_exact_strata(),
)
