"""Ways into the controller from other programs' interfaces: LangChain's chat models and evaluation harnesses."""
