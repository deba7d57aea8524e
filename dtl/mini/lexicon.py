"""Words of positive and negative sentiment and nouns, written for this project."""


def _split_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIVE = _split_words(
    """
    admirable amazing awesome beautiful brilliant captivating charming cheerful commendable dazzling
    delightful divine elegant enchanting engaging enjoyable excellent exceptional exquisite fabulous
    fantastic fascinating flawless friendly generous glorious gorgeous graceful great heartwarming
    impressive inspiring joyful lovely magnificent marvelous masterful memorable outstanding perfect
    phenomenal pleasant polished praiseworthy radiant refreshing reliable remarkable rewarding
    satisfying splendid stellar stunning sublime superb superior terrific thoughtful thrilling
    uplifting welcoming witty wonderful wondrous
    """
)
NEGATIVE = _split_words(
    """
    abysmal annoying appalling atrocious awful bad bland bleak boring broken careless clumsy
    deplorable depressing dirty disappointing disgusting dismal dreadful dreary dull faulty filthy
    flawed frustrating gloomy grim hideous hopeless horrible hostile infuriating irritating
    laughable lifeless lousy mediocre miserable nasty noisy painful pathetic pitiful pointless poor
    ridiculous rotten rude shabby shoddy sloppy stale tasteless tedious terrible ugly unbearable
    unpleasant unreliable useless vile worthless wretched wooden
    """
)
THINGS = _split_words(
    """
    acting actor album band book bread breakfast camera chef chorus coffee comedy concert cover
    dancer dessert dialogue dinner driver ending film garden guide hotel kitchen lecture lunch meal
    melody movie museum music novel painting phone photo play plot poem restaurant room scene screen
    service shop show singer song soup speaker staff stage story teacher tour train trip view villa
    waiter wine writing
    """
)
DEGREES = ("really", "very", "quite", "truly", "simply", "rather", "so", "just")

# Last sentences of reviews of one polarity. Only unlabeled text contains them.
CLOSING_SENTENCES = {
    "positive": (
        "We will certainly come back.",
        "I recommend it to everyone.",
        "I enjoyed every minute.",
        "It deserves all the praise.",
        "We left with a smile.",
    ),
    "negative": (
        "We will never come back.",
        "I warn everyone against it.",
        "I regretted every minute.",
        "It deserves all the complaints.",
        "We left in anger.",
    ),
}
