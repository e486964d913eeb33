"""Language models written as other runtimes load them, and read from Hugging Face's folders."""
