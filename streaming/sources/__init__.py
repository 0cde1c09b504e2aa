"""What a file says of itself and its pictures: opening, probing, decoding, pictures at random
times.
"""
