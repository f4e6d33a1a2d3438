"""The embedded benchmark: annotated 360° scenes, rendered from a seed.

``settings`` says what a corpus is made of, ``script`` what happens in a recording, ``sounds``
(and ``synthesis``) what is heard, ``rooms`` how it arrives, ``pictures`` what is seen, and
``render`` writes it all to disk.
"""
