"""Words for strings, keys and handles: common ones, and ones made of syllables, so that copying has to be learned."""

from __future__ import annotations

import random

from .settings import CorpusSettings
from .sides import TEST, is_new_word

COMMON = tuple(
    """
    age apple area array author away band bank base beach bird black block blue board boat body book box branch bread
    bridge bright brown build bus button cache call camera card cat center chain chair child city class clean client
    clock cloud coat code cold color copy corner count country cover cup cycle dance data date day deep delta depth desk
    device dinner dog door dream dress drive duck early earth east edge egg email empty end energy engine entry error
    event face family farm fast field file final fire first fish flag floor flow flower fog folder food forest form
    fresh friend front fruit game garden gate glass gold grain grass gray green grid ground group hall hand happy head
    heart heavy height hello help hill home horse host hour house ice id image index input iron island item job joy
    juice key kind king lake lamp land large last late layer leaf left lemon length letter level light limit line lion
    list local lock log long loop low lunch machine mail map mark market mask matrix max meal memory menu message metal
    milk min mind mode model moon morning mouse music name near nest net new next night node noise north note number
    ocean office offset old open orange order output owner page paint pair paper park part path peace pen phone piano
    picture place plan plane plant plate point port power price print queen query quick quiet radio rain range rate
    reader red request result rice right ring river road rock role room root rose round route row rule salt sand scale
    school score sea search season seat second seed server shade ship shoe shop short side signal silver size sky sleep
    small smile snow soft song sound source south space speed spring square stack star start state station step stone
    storm story street string sugar summer sun sweet system table tail task tea team test text tiger time title token
    tool top total tower town trace track train tree trip type unit user value vector version view village voice walk
    wall warm watch water wave week weight west wheel white wide width wind window winter wire wolf wood word world
    yard year yellow young zero zone
    """.split()
)
_LETTERS = tuple("abcdeghijkmnopqrstuvwxyz")
_ONSETS, _VOWELS = "bdfgklmnprstvz", "aeiou"


class Words:
    """Draws words for one side.

    Args:
        draw: where chance comes from.
        side: "train" has no word that is kept for "test".
        settings: the shares of new words and of made words.
    """

    def __init__(self, draw: random.Random, side: str, settings: CorpusSettings) -> None:
        self.draw, self.side, self.settings = draw, side, settings
        self.old = [word for word in COMMON if not is_new_word(word)]
        self.new = [word for word in COMMON if is_new_word(word)]

    def word(self) -> str:
        """Returns a word of lower-case letters."""
        new = self.side == TEST and self.draw.random() < self.settings.new_words
        if self.draw.random() >= self.settings.made_words:
            return self.draw.choice(self.new if new else self.old)
        while True:
            made = "".join(self._syllable() for _ in range(self.draw.randint(2, 3)))
            if is_new_word(made) == new:
                return made

    def name(self) -> str:
        """Returns a name for a key or a handle: a letter, a word, or two with an underscore."""
        chance = self.draw.random()
        if chance < 0.2:
            return self.draw.choice(_LETTERS)
        return self.word() if chance < 0.85 else f"{self.word()}_{self.word()}"

    def phrase(self) -> str:
        """Returns some words for a string."""
        most = self.settings.string_words
        return " ".join(self.word() for _ in range(min(most, 1 + int(self.draw.expovariate(1.6)))))

    def _syllable(self) -> str:
        ending = self.draw.choice("nrsl") if self.draw.random() < 0.25 else ""
        return self.draw.choice(_ONSETS) + self.draw.choice(_VOWELS) + ending
