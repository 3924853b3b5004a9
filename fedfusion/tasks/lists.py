"""`lists`: sixteen small programs on lists of digits and of letters, for a language model to learn to run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice

import torch
from datasets import Dataset

from fedfusion.rng import generator
from fedfusion.types import FedfusionError

DIGITS, LETTERS = "0123456789", "abcdefghij"
LENGTHS = range(4, 8)

Values = list[str]
Program = Callable[[Values], Values]


def _rank(value: str) -> int:
    """Place of a value in its alphabet."""
    return (DIGITS if value in DIGITS else LETTERS).index(value)


def _even(value: str) -> bool:
    return _rank(value) % 2 == 0


def _vowel(value: str) -> bool:
    return value in "aei"


def _small(value: str) -> bool:
    return _rank(value) < 5


def _keep(test: Callable[[str], bool], wanted: bool = True) -> Program:
    return lambda x: [v for v in x if test(v) is wanted]


def _count(test: Callable[[str], bool], wanted: bool = True) -> Program:
    return lambda x: [str(sum(test(v) is wanted for v in x))]


def _mask(test: Callable[[str], bool], wanted: bool = True) -> Program:
    return lambda x: ["-" if test(v) is wanted else v for v in x]


def _add(n: int) -> Program:
    """The value `n` places on, beginning again after the last."""
    return lambda x: [(DIGITS if v in DIGITS else LETTERS)[(_rank(v) + n) % 10] for v in x]


def _on_both(programs: Mapping[str, Program]) -> dict[str, Program]:
    """A program that does not care what it moves is two tasks: one on digits, one on letters."""
    return {f"{name}-{kind}": run for kind in ("digits", "letters") for name, run in programs.items()}


PROGRAMS: Mapping[str, Program] = {
    "keep-even-digits": _keep(_even),
    "keep-vowel-letters": _keep(_vowel),
    "count-even-digits": _count(_even),
    "count-vowel-letters": _count(_vowel),
    **_on_both(
        {
            "reverse": lambda x: x[::-1],
            "sort-down": lambda x: sorted(x, reverse=True),
            "drop-end": lambda x: x[1:-1],
            "add-1": _add(1),
            "double": lambda x: [v for v in x for _ in range(2)],
            "pick-largest": lambda x: [max(x)],
        }
    ),
}

TREE: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "order": {
        "reverse": ("reverse-digits", "reverse-letters"),
        "sort": ("sort-down-digits", "sort-down-letters"),
    },
    "select": {
        "by value": ("keep-even-digits", "keep-vowel-letters"),
        "by place": ("drop-end-digits", "drop-end-letters"),
    },
    "map": {
        "shift": ("add-1-digits", "add-1-letters"),
        "double": ("double-digits", "double-letters"),
    },
    "aggregate": {
        "count": ("count-even-digits", "count-vowel-letters"),
        "extreme": ("pick-largest-digits", "pick-largest-letters"),
    },
}
SUITE = {
    task: (family, branch) for family, branches in TREE.items() for branch, pair in branches.items() for task in pair
}

PRETRAINING: Mapping[str, Program] = {
    "keep-odd-digits": _keep(_even, False),
    "keep-consonant-letters": _keep(_vowel, False),
    "count-odd-digits": _count(_even, False),
    "count-consonant-letters": _count(_vowel, False),
    "mask-even-digits": _mask(_even),
    "mask-vowel-letters": _mask(_vowel),
    **_on_both(
        {
            "swap-first": lambda x: [x[1], x[0], *x[2:]],
            "swap-last": lambda x: [*x[:-2], x[-1], x[-2]],
            "swap-end": lambda x: [x[-1], *x[1:-1], x[0]],
            "rotate-up": lambda x: [*x[1:], x[0]],
            "rotate-down": lambda x: [x[-1], *x[:-1]],
            "reverse-first": lambda x: [*x[2::-1], *x[3:]],
            "reverse-last": lambda x: [*x[:-3], *x[:-4:-1]],
            "sort-up": sorted,
            "sort-first": lambda x: [*sorted(x[:3]), *x[3:]],
            "keep-first": lambda x: x[:2],
            "keep-last": lambda x: x[-2:],
            "keep-small": _keep(_small),
            "drop-first": lambda x: x[1:],
            "drop-last": lambda x: x[:-1],
            "drop-largest": lambda x: [v for v in x if v != max(x)],
            "drop-smallest": lambda x: [v for v in x if v != min(x)],
            "drop-double": lambda x: list(dict.fromkeys(x)),
            "mask-small": _mask(_small),
            "mask-largest": lambda x: ["-" if v == max(x) else v for v in x],
            "add-2": _add(2),
            "add-3": _add(3),
            "add-5": _add(5),
            "double-first": lambda x: [x[0], *x],
            "double-last": lambda x: [*x, x[-1]],
            "repeat": lambda x: x + x,
            "count": lambda x: [str(len(x))],
            "count-small": _count(_small),
            "pick-first": lambda x: [x[0]],
            "pick-last": lambda x: [x[-1]],
            "pick-smallest": lambda x: [min(x)],
        }
    ),
}


def examples(task: str, rng: torch.Generator) -> Iterator[dict[str, str]]:
    """Rows of a task without end: its name in words, a random list, and what the program makes of it.

    Examples
    --------
    >>> next(examples("pick-first-digits", generator(0)))
    {'instruction': 'pick first digits', 'input': '0 3 2 3', 'output': '0'}
    """
    run = PROGRAMS.get(task) or PRETRAINING[task]
    alphabet = DIGITS if task.endswith("digits") else LETTERS
    while True:
        length = int(torch.randint(LENGTHS.start, LENGTHS.stop, (), generator=rng))
        values = [alphabet[i] for i in torch.randint(len(alphabet), (length,), generator=rng).tolist()]
        output = " ".join(run(values)) or "none"
        yield {"instruction": task.replace("-", " "), "input": " ".join(values), "output": output}


@dataclass(frozen=True)
class Lists:
    """Sixteen programs on lists of four to seven digits or letters, as rows of instruction, input and output.

    `reverse digits: 3 1 4 1 5 = 5 1 4 1 3`. Four families of programs, two programs in each, two tasks to a
    program: mostly the same program on digits and on letters. How close two tasks are is therefore known.

    Parameters
    ----------
    tasks
        Which of the sixteen, in which order.
    num_train
        Rows of a task to train on, to be divided among its clients.
    num_root
        Rows of a task that those of the server are drawn from, with labels and without.
    num_test
        Rows to test a task on; as many others to choose hyper-parameters on.
    """

    tasks: Sequence[str] = tuple(SUITE)
    num_train: int = 512
    num_root: int = 32
    num_test: int = 128

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in SUITE:
                near = get_close_matches(str(task), SUITE, n=3, cutoff=0.0)
                raise FedfusionError(f"suite.source.tasks: there is no task '{task}' (nearest are {', '.join(near)})")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise FedfusionError(
                f"suite.source.tasks must name at least one task, and none twice, got {list(self.tasks)}"
            )
        for key in ("num_train", "num_root", "num_test"):
            if not 1 <= getattr(self, key) <= 4096:
                raise FedfusionError(f"suite.source.{key} must be between 1 and 4096, got {getattr(self, key)}")

    def rows(self, task: str, split: str) -> Dataset:
        """The rows of one task: `train`, `root`, `validation` or `test`; no input is in two of them, or twice."""
        sizes = {"test": self.num_test, "validation": self.num_test, "root": self.num_root, "train": self.num_train}
        if split not in sizes:
            raise FedfusionError(f"there is no split '{split}' (choose among {', '.join(sizes)})")
        distinct: dict[str, dict[str, str]] = {}
        for row in examples(task, generator(0, "lists", task)):
            distinct.setdefault(row["input"], row)
            if len(distinct) == sum(sizes.values()):
                break
        start = sum(islice(sizes.values(), list(sizes).index(split)))
        return Dataset.from_list(list(distinct.values())[start : start + sizes[split]])

    def relation(self, task: str, other: str) -> float:
        """How close two tasks are: 1 the same, 0.75 the same program, 0.5 the same family, else 0."""
        shared = sum(a == b for a, b in zip((*SUITE[task], task), (*SUITE[other], other), strict=True))
        return (0.0, 0.5, 0.75, 1.0)[shared]
