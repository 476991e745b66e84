"""Texts whose vectors say where a language model's space lies: its mean and its spread.

Part of what a model's vectors are: whoever changes a text here changes the fingerprint of every
standardised embedding, and predictors trained before no longer load.
"""

_FRAMES = (
    "How much do you trust {}?",
    "Do you think that {} will get better or worse over the next ten years?",
    "How important is {} in your life?",
    "Thinking about {}, are you satisfied with the way things are going in your country today?",
    "Some say that we spend too much on {}, others that we spend too little. What do you say?",
    "Who should have the most say over {}?",
    "Do you agree or disagree: {} matters more than it used to.",
    "How worried are you about {}?",
    "In the past twelve months, have you or anyone in your family talked about {}?",
    "Which of these statements about {} comes closest to your own view?",
    "Would you say that {} is a big problem, a small problem or no problem at all?",
    "Write a short and honest answer to somebody who asks you about {}.",
)
_SUBJECTS = (
    "the government", "religion", "your family", "the economy", "immigration from other countries",
    "climate change", "science and technology", "the police and the courts",
    "schools and teachers", "the army", "marriage between people of the same sex", "elections",
    "work and unemployment", "the United Nations", "the United States and China", "health care",
    "crime in the streets", "television, newspapers and the internet", "large companies",
    "equality between men and women", "the price of food and housing",
    "children and young people", "growing old", "corruption", "war and terrorism",
    "neighbours of another race", "taxes", "animals and nature", "sport and music",
    "food and cooking", "computer programs", "traffic in the city", "death", "friends", "money",
)  # fmt: skip
_ANSWERS = (
    "Yes", "No", "Don't know", "Refused", "Other", "Both", "Neither", "None of these",
    "Strongly agree", "Somewhat agree", "Agree", "Neither agree nor disagree", "Disagree",
    "Strongly disagree", "Very important", "Rather important", "Not very important",
    "Not at all important", "A great deal", "Quite a lot", "Not very much", "None at all",
    "A lot", "A little", "Not too much", "Very satisfied", "Completely dissatisfied",
    "Very good", "Somewhat good", "Bad", "Very bad", "Better", "Worse", "About the same",
    "Increase", "Decrease", "Stay the same", "Too much", "Too little", "About right",
    "Always", "Often", "Sometimes", "Rarely", "Never", "Every day", "More than once a week",
    "Once a year", "Very likely", "Not likely", "Major threat", "Minor threat", "Not a threat",
    "Favourable", "Unfavourable", "Approve", "Disapprove", "Support", "Oppose", "True", "False",
    "Men", "Women", "The United States", "China", "Russia", "1", "2", "5", "10",
    "Less than 20%", "18 to 29 years", "Very proud", "Not a member", "Active member",
    "A larger part for the state", "Everyone for themselves", "Nearly everybody",
    "I am sorry, but I cannot help with that.", "Sure! Here is a list of ideas.",
    "It depends on what you would like to do.",
)  # fmt: skip

REFERENCE_TEXTS: tuple[str, ...] = (
    *(frame.format(subject) for frame in _FRAMES for subject in _SUBJECTS),
    *_SUBJECTS,
    *_ANSWERS,
)
