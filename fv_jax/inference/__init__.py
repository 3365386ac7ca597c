"""From a prompt or a clip to video: executables and the pipeline they make up."""
