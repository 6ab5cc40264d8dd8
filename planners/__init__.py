"""Planning in latent space: energies, sampling and gradient planners, the receding-horizon agent."""
