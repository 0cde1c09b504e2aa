"""What made the embedded model: scenes, questions, training and the measures of it. Nothing here
runs with the app.
"""
