"Blind ratings by people, and models as judges."
