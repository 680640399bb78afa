package org.edgepack.host;

import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Map;

/** Files that are whole or absent: written beside, then renamed. */
final class Files {
    private static final int MOST = 16 << 20;

    private Files() {}

    /** Write an object as JSON. */
    static void write(File file, Map<String, Object> object) throws Failure {
        File partial = new File(file.getPath() + ".partial");
        try (FileOutputStream out = new FileOutputStream(partial)) {
            out.write(Json.write(object).getBytes(Worker.UTF_8));
            out.getFD().sync();
        } catch (IOException full) {
            partial.delete();
            throw new Failure("the phone's storage cannot be written", "free some space");
        }
        rename(partial, file);
    }

    /** Read an object; `Failure` where there is none. */
    static Map<String, Object> read(File file) throws Failure {
        if (file.length() > MOST) throw new Failure(file.getName() + " is too long");
        byte[] bytes = new byte[(int) file.length()];
        try (FileInputStream in = new FileInputStream(file)) {
            int read = 0;
            for (int n = 0; read < bytes.length && n >= 0; read += n) {
                n = in.read(bytes, read, bytes.length - read);
                if (n < 0) break;
            }
        } catch (IOException gone) {
            throw new Failure(file.getName() + " cannot be read");
        }
        return Json.parseObject(new String(bytes, Worker.UTF_8));
    }

    static void rename(File from, File to) throws Failure {
        if (!from.renameTo(to)) throw new Failure("the phone's storage cannot be written");
    }

    static File folder(File folder) throws Failure {
        if (folder.isDirectory() || folder.mkdirs()) return folder;
        throw new Failure("the phone's storage cannot be written");
    }

    /** Remove a file, or a folder with all that is in it. */
    static void remove(File file) {
        File[] children = file.listFiles();
        if (children != null) for (File child : children) remove(child);
        file.delete();
    }

    static File[] children(File folder) {
        File[] found = folder.listFiles();
        if (found == null) return new File[0];
        java.util.Arrays.sort(found);
        return found;
    }

    // ------------------------------------------------------------------------ copies

    /** Hears how many bytes were copied; a `Failure` of it ends the copy. */
    interface Watch {
        void copied(long bytes) throws Failure;
    }

    /** Copy a stream into a file that ends in .partial, and return its sha256. `label` is its name
     *  for people. What is there after a failure is removed. */
    static String copy(InputStream in, File partial, String label, Watch watch) throws Failure {
        boolean whole = false;
        try (FileOutputStream out = new FileOutputStream(partial)) {
            MessageDigest digest = sha256();
            byte[] block = new byte[1 << 20];
            long count = 0;
            for (int n = readSome(in, block, label); n >= 0; n = readSome(in, block, label)) {
                out.write(block, 0, n);
                digest.update(block, 0, n);
                count += n;
                watch.copied(count);
            }
            out.getFD().sync();
            whole = true;
            return hex(digest.digest());
        } catch (IOException full) {
            throw new Failure("the phone's storage is full", "free some space");
        } finally {
            if (!whole) partial.delete();
        }
    }

    private static int readSome(InputStream in, byte[] block, String label) throws Failure {
        try {
            return in.read(block);
        } catch (IOException broken) {
            throw new Failure(label + " cannot be read to its end", "choose it again");
        }
    }

    static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException never) {
            throw new IllegalStateException(never);
        }
    }

    static String sha256(String text) {
        return hex(sha256().digest(text.getBytes(Worker.UTF_8)));
    }

    static String hex(byte[] bytes) {
        StringBuilder out = new StringBuilder();
        for (byte one : bytes) out.append(String.format("%02x", one));
        return out.toString();
    }
}
