package org.edgepack.demo;

import android.content.ContentResolver;
import android.database.Cursor;
import android.net.Uri;
import android.provider.OpenableColumns;
import java.io.IOException;
import java.io.InputStream;
import org.edgepack.host.Picked;

/** A file of another app, by its content URI. */
final class Document implements Picked {
    private final ContentResolver resolver;
    private final Uri uri;
    private String name = "file";
    private long size = -1;

    Document(ContentResolver resolver, Uri uri) {
        this.resolver = resolver;
        this.uri = uri;
        String[] columns = {OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE};
        try (Cursor found = resolver.query(uri, columns, null, null, null)) {
            if (found == null || !found.moveToFirst()) return;
            if (!found.isNull(0)) name = found.getString(0);
            if (!found.isNull(1)) size = found.getLong(1);
        } catch (RuntimeException foreign) {
            // another app's provider may throw anything; the copy will tell what is wrong
        }
    }

    @Override
    public String name() {
        return name;
    }

    @Override
    public long size() {
        return size;
    }

    @Override
    public InputStream open() throws IOException {
        try {
            InputStream in = resolver.openInputStream(uri);
            if (in == null) throw new IOException("no stream");
            return in;
        } catch (RuntimeException foreign) {
            throw new IOException(foreign);
        }
    }
}
