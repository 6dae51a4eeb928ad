"Text from a model: decoded, searched, constrained, streamed, talked with."
