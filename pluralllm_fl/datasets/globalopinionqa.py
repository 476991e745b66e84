"""GlobalOpinionQA (Durmus et al. 2023, arXiv 2306.16388): where it lies and its split of groups."""

from dataclasses import replace

from pluralllm_fl.preferences import PreferenceDataset

HUB_ID = "Anthropic/llm_global_opinions"

# The split of PluralLLM (arXiv 2503.09925).
SEEN = (
    "Nigeria",
    "Egypt",
    "India (Current national sample)",
    "Germany",
    "United States",
    "Canada",
    "Argentina",
    "Australia",
)
UNSEEN = ("China", "Japan", "France", "Spain", "Brazil", "New Zealand")


def with_paper_split(dataset: PreferenceDataset) -> PreferenceDataset:
    """Add the paper's split as the default if every seen group is there, else change nothing."""
    if not all(group in dataset.groups for group in SEEN):
        return dataset
    unseen = tuple(group for group in UNSEEN if group in dataset.groups)
    return replace(dataset, default_seen=SEEN, default_unseen=unseen)
