"""From a producer's drop to accepted rows of the catalog, and from the catalog to a cycle's snapshot."""
