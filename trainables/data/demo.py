"""Synthetic drug-label paragraphs in five classes, for a first sweep without any download.

The rows are made up: no drug, number or sentence is real. What they copy is the shape of the ADME data of Shi et al.
(2022), which is not public: its five classes, its imbalance made more extreme, and its difficulty: the sections of a
drug label talk about each other all the time. They are good for trying the tool, not for comparing methods.
"""

import random
from collections.abc import Callable

DEMO_NUM_ROWS = 600  # of demo://drug-labels: a demo for two CPU cores
DEMO_SEED = 20

# Rows of the ADME training set (Shi et al. 2022, read off a figure). Shares here are proportional to their squares.
ADME_COUNTS = {"other": 4562, "absorption": 1622, "excretion": 1253, "distribution": 1017, "metabolism": 941}

LABEL_NOISE = 0.06  # share of rows whose labels are shuffled among themselves
FOREIGN_SENTENCE = 0.35  # share of paragraphs with a sentence of another class next to their own
NEUTRAL_SENTENCE = 0.25  # share of paragraphs with a sentence that occurs in every section

# Words that every class uses. A slot in a template is a key of this table in braces.
SLOTS: dict[str, list[str]] = {
    "who": [
        "healthy volunteers", "elderly patients", "adult subjects", "pediatric patients", "adult patients",
        "patients with renal impairment", "patients with hepatic impairment", "postmenopausal women",
        "subjects with mild disease",
    ],
    "dose": [
        "a single dose", "an oral dose", "repeated doses", "a 50 mg dose", "a 200 mg tablet", "an intravenous dose",
        "daily dosing",
    ],
    "measure": [
        "plasma concentrations", "systemic exposure", "AUC", "Cmax", "trough levels", "serum levels", "mean exposure",
    ],
    "organ": ["liver", "kidney", "gut wall", "plasma", "bile", "urine", "intestine", "tissue"],
    "enzyme": ["CYP3A4", "CYP2D6", "CYP2C9", "UGT1A1", "esterases", "P-glycoprotein", "OATP1B1"],
    "change": ["increased", "decreased", "rose", "fell", "varied", "declined"],
    "time": ["2 hours", "4 hours", "8 hours", "12 hours", "24 hours", "36 hours", "three days", "one week"],
    "number": ["5", "10", "15", "20", "25", "30", "40", "50", "60", "70", "80", "90", "95", "99"],
    "group": ["women", "men", "smokers", "infants", "the elderly", "poor metabolizers", "patients on dialysis"],
    "event": ["headache", "nausea", "dizziness", "rash", "fatigue", "diarrhea", "hypotension", "insomnia"],
    "use": ["hypertension", "epilepsy", "infection", "migraine", "asthma", "depression", "arthritis", "diabetes"],
}  # fmt: skip

# Sentences of each class. They share phrases on purpose ("half-life", "plasma", "renal", "approximately N%").
SENTENCES: dict[str, list[str]] = {
    "absorption": [
        "After {dose} in {who}, peak plasma levels of {drug} were reached within {time}.",
        "The bioavailability of {drug} is approximately {number}% in {who}.",
        "When {drug} was given with food, {measure} {change} by {number}% in {who}.",
        "About {number}% of {dose} of {drug} reaches the plasma unchanged.",
        "In {who}, {drug} appears in plasma rapidly and {measure} {change} with dose.",
        "A high-fat meal delayed the time to peak of {drug} by {time}.",
        "Exposure to {drug} after {dose} was {number}% of that after infusion.",
    ],
    "distribution": [
        "Approximately {number}% of {drug} is bound to plasma proteins in {who}.",
        "The apparent volume of {drug} after {dose} is {number} liters in {who}.",
        "In {who}, levels of {drug} in {organ} were {number}% of those in plasma.",
        "Binding of {drug} to albumin {change} in {who} and did not depend on {measure}.",
        "After {dose}, {drug} passes readily into {organ} and breast milk.",
        "The blood to plasma ratio of {drug} was {number}% at {time} after {dose}.",
        "Tissue levels of {drug} {change} for {time} after {dose}.",
    ],
    "metabolism": [
        "In the {organ}, {drug} is converted mainly by {enzyme} to inactive products.",
        "About {number}% of {dose} of {drug} is oxidized by {enzyme} in {who}.",
        "The main circulating product of {drug} accounts for {number}% of {measure} in {who}.",
        "In vitro, {enzyme} contributes {number}% to the turnover of {drug} in human {organ}.",
        "In {group}, {measure} of {drug} {change} because {enzyme} activity is low.",
        "The active metabolite of {drug} has a half-life of {time} in {who}.",
        "First-pass loss of {drug} in the {organ} is approximately {number}%.",
    ],
    "excretion": [
        "Approximately {number}% of {dose} of {drug} is recovered in {organ} within {time}.",
        "The elimination half-life of {drug} is {time} in {who}.",
        "Renal clearance of {drug} {change} by {number}% in {who}.",
        "Within {time} after {dose}, {number}% of {drug} appeared in feces or {organ}.",
        "In {who}, {drug} leaves the plasma with a terminal half-life of {time}.",
        "Hemodialysis removed {number}% of {drug} and {measure} {change} over {time}.",
        "Total clearance of {drug} after {dose} was {number} liters per hour in {who}.",
    ],
    "other": [
        "{drug} is indicated for the treatment of {use} in {who}.",
        "Adverse reactions to {drug} such as {event} occurred in {number}% of {who}.",
        "Reduce {dose} of {drug} in {who} because {measure} {change}.",
        "In {group} who take inhibitors of {enzyme}, {measure} of {drug} {change} by {number}%.",
        "Because of its long half-life, {event} may persist for {time} after stopping {drug}.",
        "No dose adjustment of {drug} is needed in {group} with {use}.",
        "Monitor renal function and {measure} in {who} who take {drug} for {use}.",
        "In a trial of {number} patients with {use}, {drug} reduced symptoms at {time}.",
        "Plasma levels of {drug} above {number} ng/mL were associated with {event} in {group}.",
        "{event} was reported by {number}% of {who} within {time} of {dose} of {drug}.",
        "It is not known whether {drug} is present in human milk or {organ} after {dose}.",
        "{drug} inhibits {enzyme} in vitro, but this is not expected to matter in {who}.",
    ],
}
NEUTRAL = [
    "The pharmacokinetics were similar in {group} and {who}.",
    "These findings are based on {number} subjects who received {dose}.",
    "No relevant difference was seen in {group}.",
    "Values varied between {group} and {who}.",
    "This was studied in {who} after {dose}.",
    "Steady state was reached after {time} in {who}.",
]


def demo_rows(num_rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Distinct synthetic paragraphs of one or two sentences, 20 words in the mean, in random order.

    Args:
        num_rows: how many, at least 5 so that each class has one.
        seed: the same seed gives the same rows on every machine.

    Returns:
        texts, labels: both of length ``num_rows``.
    """
    assert num_rows >= len(SENTENCES), f"num_rows is {num_rows}, but each of the {len(SENTENCES)} classes needs a row"
    rng = random.Random(seed)
    labels = [name for name, count in class_sizes(num_rows).items() for _ in range(count)]
    rng.shuffle(labels)
    seen: set[str] = set()
    texts: list[str] = []
    for label in labels:
        text = _paragraph(label, rng)
        while text in seen:
            text = _paragraph(label, rng)
        seen.add(text)
        texts.append(text)
    return texts, _shuffled_in_part(labels, rng)


def class_sizes(num_rows: int) -> dict[str, int]:
    """Rows per class: shares proportional to the squared ADME counts, at least one each, summing to ``num_rows``."""
    squares = {name: count**2 for name, count in ADME_COUNTS.items()}
    sizes = {name: max(1, num_rows * square // sum(squares.values())) for name, square in squares.items()}
    sizes["other"] += num_rows - sum(sizes.values())
    return sizes


def _paragraph(label: str, rng: random.Random) -> str:
    """Return a sentence of the class, perhaps with another one before or after it; all about the same drug."""
    templates = [rng.choice(SENTENCES[label])]
    draw = rng.random()
    if draw < FOREIGN_SENTENCE:
        other = rng.choice([name for name in SENTENCES if name != label])
        templates.append(rng.choice(SENTENCES[other]))
    elif draw < FOREIGN_SENTENCE + NEUTRAL_SENTENCE:
        templates.append(rng.choice(NEUTRAL))
    rng.shuffle(templates)
    drug = _drug_name(rng)
    return " ".join(_sentence(template, drug, rng.choice) for template in templates)


def _sentence(template: str, drug: str, choose: Callable[[list[str]], str]) -> str:
    filled = {slot: choose(words) for slot, words in SLOTS.items()}
    text = template.format(drug=drug, **filled)
    return text[0].upper() + text[1:]


def _drug_name(rng: random.Random) -> str:
    """Return an invented name, such as ``Velotanib``."""
    syllables = ["ve", "lo", "ta", "mi", "ra", "zo", "cu", "pe", "xi", "fa", "do", "ne"]
    return "".join(rng.sample(syllables, 2)).capitalize() + rng.choice(
        ["tanib", "pril", "statin", "mab", "zole", "vir", "done"]
    )


def _shuffled_in_part(labels: list[str], rng: random.Random) -> list[str]:
    """Label noise that leaves the class sizes as they are: some rows trade labels with one another."""
    noisy = list(labels)
    chosen = rng.sample(range(len(labels)), round(LABEL_NOISE * len(labels)))
    traded = rng.sample(chosen, len(chosen))
    for row, source in zip(chosen, traded, strict=True):
        noisy[row] = labels[source]
    return noisy
