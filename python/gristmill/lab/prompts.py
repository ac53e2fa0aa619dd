"""The prompts that continuations are measured with: plain questions that ask for an answer of some length."""

PROMPTS: tuple[str, ...] = (
    "Explain how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "What are the main causes of inflation?",
    "Describe how bread is made, step by step.",
    "How many r's are in the word strawberry? Think it through.",
    "Write a Python function that checks whether a number is prime, and explain it.",
    "Give advice to someone who moves to a new city alone.",
    "Why is the sky blue during the day and red in the evening?",
    "List ten ideas for a rainy afternoon with children.",
    "Compare the climates of Norway and Egypt.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it travel? Show your work.",
    "Write a letter that complains politely about a late delivery.",
    "What did people use to keep food fresh before refrigerators?",
    "Describe the life cycle of a star.",
    "Continue this tale: Once there was a mill that ground by itself at night.",
    "What is the difference between a virus and a bacterium?",
)
