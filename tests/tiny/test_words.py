"""The stock of music words."""

from __future__ import annotations

from sa3lora.tiny.words import stock_sentences, stock_words


def test_every_word_is_there_once_and_in_some_sentence():
    words = stock_words()
    assert len(words) == len(set(words)) > 300
    spoken = " ".join(stock_sentences()).replace(",", " ").split()
    assert set(words) <= set(spoken)


def test_the_sentences_are_always_the_same():
    assert stock_sentences() == stock_sentences()
