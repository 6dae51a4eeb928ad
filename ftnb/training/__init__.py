"Fine-tuning: one loop, its callbacks, runs that can be stopped and resumed."
