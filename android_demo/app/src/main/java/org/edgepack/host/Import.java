package org.edgepack.host;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.SequenceInputStream;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Files that a person chose become a model or an adapter: copied with their sha256, read by the chat
 * worker, compared with a manifest.json where one was chosen too, and only then moved into place.
 */
final class Import {
    private static final long SPARE = 64L << 20;
    private static final byte[] MAGIC = {'G', 'G', 'U', 'F'};

    /** What an import needs of the rest. */
    interface Needs {
        /** What the chat worker says of a file (`inspected`). Waits. */
        Map<String, Object> inspect(File file) throws Failure;

        long freeBytes(File folder);

        void progress(double share, String label) throws Failure;
    }

    /** A copied file, and what is known of it. */
    private static final class Copied {
        String name, sha256, kind;
        File file;
        Map<String, Object> about;
    }

    private final ModelStore store;
    private final Needs needs;
    private final File folder;
    private long total, before;

    Import(ModelStore store, Needs needs) {
        this.store = store;
        this.needs = needs;
        this.folder = new File(store.incoming(), Long.toString(System.nanoTime()));
    }

    /** Import a model (base, factors, manifest), or with `of` an adapter of that model. Returns the
     *  model. */
    Model run(List<? extends Picked> picked, Model of) throws Failure {
        try {
            Files.folder(folder);
            checkSpace(picked);
            Map<String, Object> manifest = null;
            List<Copied> copied = new ArrayList<Copied>();
            for (Picked one : picked) {
                if (one.name().endsWith(".json")) manifest = readManifest(one);
                else copied.add(copy(one));
            }
            for (Copied one : copied) inspect(one);
            if (copied.isEmpty()) throw new Failure("no .gguf file was chosen");
            return of == null ? addModel(copied, manifest) : addAdapters(copied, of);
        } finally {
            Files.remove(folder);
        }
    }

    private void checkSpace(List<? extends Picked> picked) throws Failure {
        for (Picked one : picked) total += Math.max(0, one.size());
        long free = needs.freeBytes(folder);
        if (total + SPARE > free) {
            throw new Failure("the phone has " + (free >> 20) + " MB free, this needs "
                    + ((total + SPARE) >> 20) + " MB", "free some space");
        }
    }

    private Copied copy(final Picked picked) throws Failure {
        Copied copied = new Copied();
        copied.name = picked.name();
        copied.file = new File(folder, folder.list().length + ".gguf.partial");
        try (InputStream in = checkMagic(picked)) {
            copied.sha256 = Files.copy(in, copied.file, picked.name(), new Files.Watch() {
                @Override
                public void copied(long bytes) throws Failure {
                    double share = total == 0 ? 0 : (before + bytes) / (double) total;
                    needs.progress(Math.min(1, share), picked.name());
                }
            });
        } catch (IOException unreadable) {
            throw new Failure(picked.name() + " cannot be opened", "choose it again");
        }
        before += copied.file.length();
        if (picked.size() > 0 && copied.file.length() != picked.size()) {
            throw new Failure(picked.name() + " was cut off while it was copied", "try again");
        }
        return copied;
    }

    /** A stream whose first bytes were looked at, so that no gigabytes of a film are copied. */
    private static InputStream checkMagic(Picked picked) throws IOException, Failure {
        InputStream in = picked.open();
        byte[] start = new byte[MAGIC.length];
        int count = 0;
        for (int n = 0; count < start.length && n >= 0; count += Math.max(n, 0)) {
            n = in.read(start, count, start.length - count);
        }
        if (count < start.length || !java.util.Arrays.equals(start, MAGIC)) {
            in.close();
            throw new Failure(picked.name() + " is no GGUF file",
                    "choose base.gguf and factors.gguf of an edgepack folder, or any .gguf");
        }
        return new SequenceInputStream(new ByteArrayInputStream(start), in);
    }

    private Map<String, Object> readManifest(Picked picked) throws Failure {
        File file = new File(folder, "manifest.json.partial");
        try (InputStream in = picked.open()) {
            Files.copy(in, file, picked.name(), new Files.Watch() {
                @Override
                public void copied(long bytes) throws Failure {
                    if (bytes > 16 << 20) throw new Failure("the manifest is too long");
                }
            });
        } catch (IOException unreadable) {
            throw new Failure(picked.name() + " cannot be opened", "choose it again");
        }
        Map<String, Object> manifest = Files.read(file);
        if (!(manifest.get("files") instanceof Map)) {
            throw new Failure(picked.name() + " is no manifest of edgepack", "leave it out");
        }
        return Json.object(manifest.get("files"));
    }

    private void inspect(Copied one) throws Failure {
        try {
            one.about = needs.inspect(one.file);
        } catch (Failure refused) {
            throw new Failure(one.name + ": " + refused.getMessage(), refused.hint);
        }
        one.kind = Json.text(one.about, "kind");
    }

    // ------------------------------------------------------------------------ models

    private Model addModel(List<Copied> copied, Map<String, Object> manifest) throws Failure {
        if (copied.get(0).kind.equals("adapter")) return addAdapters(copied, modelOf(copied.get(0)));
        Map<String, Copied> kinds = new HashMap<String, Copied>();
        for (Copied one : copied) {
            if (kinds.put(one.kind, one) != null) {
                throw new Failure("two files of one kind were chosen", "import models one by one");
            }
        }
        if (kinds.containsKey("adapter")) {
            throw new Failure(kinds.get("adapter").name + " is learnt notes, not the model's factors",
                    "import the model first, then this");
        }
        Copied base = kinds.get("model"), factors = kinds.get("factors");
        check(manifest, Model.BASE, base);
        check(manifest, Model.FACTORS, factors);
        if (base == null) return addFactors(factors);
        checkPair(base.about, factors);
        Map<String, Object> about = Json.of(
                "name", name(base), "sha256", base.sha256, "base_bytes", base.file.length(),
                "architecture", base.about.get("architecture"),
                "parameters", base.about.get("parameters"),
                "factors_sha256", factors == null ? null : factors.sha256,
                "needs_factors", manifest != null && manifest.containsKey(Model.FACTORS),
                "imported", System.currentTimeMillis() / 1000);
        return store.add(base.file, factors == null ? null : factors.file, about);
    }

    private static String name(Copied base) {
        String name = Json.textOrNull(base.about, "name");
        return name == null || name.isEmpty() ? base.name.replaceFirst("\\.gguf$", "") : name;
    }

    private static void check(Map<String, Object> manifest, String file, Copied copied)
            throws Failure {
        Object entry = manifest == null ? null : manifest.get(file);
        if (copied == null || manifest == null) return;
        Object sha256 = entry instanceof Map ? Json.object(entry).get("sha256") : null;
        if (!copied.sha256.equals(sha256)) {
            throw new Failure(copied.name + " has other bytes than the manifest says",
                    "copy it to the phone again, or leave manifest.json out");
        }
    }

    private static void checkPair(Map<String, Object> base, Copied factors) throws Failure {
        if (factors == null) return;
        Object needed = base.get("architecture"), has = factors.about.get("architecture");
        if (has != null && !has.equals(needed)) {
            throw new Failure(factors.name + " belongs to another model: it is for " + has
                    + ", the model is " + needed);
        }
    }

    /** Factors alone belong to the one model of their name that has none. */
    private Model addFactors(Copied factors) throws Failure {
        List<Model> found = new ArrayList<Model>();
        for (Model model : store.all()) {
            boolean fits = model.factors() == null
                    && String.valueOf(model.about.get("architecture"))
                            .equals(String.valueOf(factors.about.get("architecture")))
                    && String.valueOf(model.about.get("name"))
                            .equals(String.valueOf(factors.about.get("name")));
            if (fits) found.add(model);
        }
        if (found.size() != 1) {
            throw new Failure(factors.name + " alone is no model",
                    "choose it together with its base.gguf");
        }
        Map<String, Object> about = Json.of();
        about.putAll(found.get(0).about);
        about.put("factors_sha256", factors.sha256);
        return store.add(null, factors.file, about);
    }

    // ------------------------------------------------------------------------ adapters

    private Model modelOf(Copied adapter) throws Failure {
        Object digest = adapter.about.get("base_digest");
        for (Model model : store.all()) if (model.digest().equals(digest)) return model;
        throw new Failure(adapter.name + " holds learnt notes of a model that is not here",
                "import its model first");
    }

    private Model addAdapters(List<Copied> copied, Model model) throws Failure {
        for (Copied one : copied) {
            if (one.kind.equals("model")) {
                throw new Failure(one.name + " is a model, no learnt notes");
            }
            Object digest = one.about.get("base_digest");
            if (digest != null && !digest.equals(model.digest())) {
                throw new Failure(one.name + " was made for another model");
            }
        }
        for (Copied one : copied) {
            String plain = one.name.replaceFirst("\\.gguf$", ""), name = plain;
            for (int i = 2; model.hasAdapter(name); i++) name = plain + " " + i;
            model.addAdapter(name, one.file, Json.of("examples", null,
                    "created", System.currentTimeMillis() / 1000, "sha256", one.sha256,
                    "base_digest", one.about.get("base_digest")));
        }
        return model;
    }
}
