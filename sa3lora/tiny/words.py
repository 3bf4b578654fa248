"""A stock of English music words, so that prompts of any kind become few tokens."""

from __future__ import annotations

_STOCK = """
track type music vocal vocals instrumental genre instruments mood key tempo beats per minute
acoustic electric electronic analog digital vintage modern classic old new retro futuristic
guitar guitars piano pianos bass drum drums kick snare hat hats cymbal percussion violin violins
viola cello strings string orchestra orchestral flute clarinet oboe sax saxophone trumpet trombone
horn brass woodwind harp bell bells chimes marimba vibraphone xylophone glockenspiel kalimba organ
harpsichord accordion harmonica banjo ukulele mandolin sitar synth synths synthesizer pad pads lead
arpeggio arpeggios choir voice voices singer singing whistle hand claps shaker tambourine conga
bongo timpani gong theremin keys keyboard rhodes square saw sine wave noise sub
rock pop jazz blues funk soul disco house techno trance ambient classical baroque folk country
reggae dub metal punk indie hiphop trap lofi chill chillout downtempo drone cinematic film score
soundtrack trailer game arcade world latin bossa nova samba tango waltz march ballad lullaby hymn
church gospel electro synthwave vaporwave breakbeat jungle garage dance club experimental minimal
calm happy sad dark bright warm cold soft loud gentle energetic tense epic dreamy peaceful relaxing
melancholic romantic mysterious scary funny playful serious hopeful heroic sleepy angry nostalgic
uplifting emotional intense smooth rough dirty clean dry wet wide deep high low rich thin airy
groovy driving steady slow fast moderate medium busy sparse dense simple complex repetitive loop
melody melodic harmony chord chords rhythm rhythmic riff groove beat bassline solo duet trio
ensemble band intro verse chorus bridge outro ending build drop break fill texture layer layers
atmosphere atmospheric background foreground space spacious echo echoes delay reverb room hall
distortion distorted filter filtered chorus tremolo vibrato compressed tape vinyl crackle hiss
glass wooden metal metallic plucked bowed struck blown picked strummed muted sustained staccato
legato swing swung shuffle syncopated straight four floor half double time major minor sharp flat
beautiful grand little big light heavy sound sounds effect effects rain wind water thunder birds
forest ocean city night morning summer winter space machine engine door footsteps crowd
with and the of in at for a an to from over into like very featuring played playing style inspired
"""
_PATTERNS = (
    "{0} music with {1} and {2}",
    "a {0} {1}, {2}",
    "Genre: {0}, Instruments: {1}, Mood: {2}",
    "{0} {1} with {2} in the background",
)


def stock_words() -> tuple[str, ...]:
    """List the words, each once."""
    return tuple(dict.fromkeys(_STOCK.split()))


def stock_sentences() -> list[str]:
    """Put every word into each of a few patterns, the same sentences every time."""
    words = stock_words()
    count = len(words)
    return [
        pattern.format(words[i], words[(7 * i + 3) % count], words[(11 * i + 5) % count])
        for pattern in _PATTERNS
        for i in range(count)
    ]
