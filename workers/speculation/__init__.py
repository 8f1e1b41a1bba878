"""Speculative decoding: several tokens of a sequence in one step, the same ones as without it.

Something cheap guesses how a sequence goes on (`PromptLookup`, `DraftModel`), and the step that computes its next token
computes the guessed ones as well, as a chunk with a token drawn after every position. As a draw is a function of the
logits and of (seed, position, token), what is drawn after a right guess is what would have been drawn one step later: a
guess is kept exactly when the model draws it, and the first token that differs takes its place. (With other noise for
every draw this takes rejection sampling: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding",
2023.)
"""
