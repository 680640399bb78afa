package org.edgepack.host;

import java.io.IOException;
import java.io.InputStream;

/** A file that a person chose. */
public interface Picked {
    String name();

    /** In bytes; -1 where the system does not tell. */
    long size();

    InputStream open() throws IOException;
}
