"""`trainer evaluate`: any packaged model, or answers made anywhere, held against any data.

Average precision asks for all that a model can find, so models are run with a low score threshold here
(`LOWEST_SCORE`), not with the one that they answer with; what they have at that one is told beside it.
"""
