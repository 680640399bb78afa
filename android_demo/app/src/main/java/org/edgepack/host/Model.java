package org.edgepack.host;

import java.io.File;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** An imported model: a folder with base.gguf, perhaps factors.gguf, adapters, and what is known. */
final class Model {
    static final String BASE = "base.gguf", FACTORS = "factors.gguf", ABOUT = "model.json";

    final File folder;
    final Map<String, Object> about;

    Model(File folder, Map<String, Object> about) {
        this.folder = folder;
        this.about = about;
    }

    String id() {
        return folder.getName();
    }

    File base() {
        return new File(folder, BASE);
    }

    /** L and R, or null. */
    File factors() {
        return about.get("factors_sha256") == null ? null : new File(folder, FACTORS);
    }

    File replay() {
        return new File(folder, "replay.json");
    }

    /** What adapters of this model name: as `BaseId.of` of edgepack/core/adapters.py. */
    String digest() {
        String text = BASE + " " + about.get("sha256");
        Object factors = about.get("factors_sha256");
        return Files.sha256(factors == null ? text : text + "\n" + FACTORS + " " + factors);
    }

    // ------------------------------------------------------------------------ adapters

    private File adapterFolder(String name) {
        return new File(new File(folder, "adapters"), Files.sha256(name).substring(0, 16));
    }

    boolean hasAdapter(String name) {
        return new File(adapterFolder(name), "adapter.json").isFile();
    }

    /** The file of an adapter; a trained again one has another path, so that workers read it. */
    File adapter(String name) throws Failure {
        if (!hasAdapter(name)) throw new Failure("there are no learnt notes of this name");
        Map<String, Object> about = Files.read(new File(adapterFolder(name), "adapter.json"));
        return new File(adapterFolder(name), Json.text(about, "file"));
    }

    /** Take a file as an adapter, in place of one of the same name. */
    void addAdapter(String name, File file, Map<String, Object> about) throws Failure {
        File own = Files.folder(adapterFolder(name));
        String kept = "adapter-" + System.currentTimeMillis() + ".gguf";
        Files.rename(file, new File(own, kept));
        about.put("name", name);
        about.put("file", kept);
        Files.write(new File(own, "adapter.json"), about);
        for (File other : Files.children(own)) {
            if (other.getName().endsWith(".gguf") && !other.getName().equals(kept)) other.delete();
        }
    }

    void removeAdapter(String name) throws Failure {
        if (!hasAdapter(name)) throw new Failure("there are no learnt notes of this name");
        Files.remove(adapterFolder(name));
    }

    // ------------------------------------------------------------------------ for the page

    Map<String, Object> describe() {
        List<Object> adapters = new ArrayList<Object>();
        for (File own : Files.children(new File(folder, "adapters"))) {
            File known = new File(own, "adapter.json");
            if (known.isFile()) adapters.add(describeAdapter(own, known));
        }
        boolean whole = base().length() == (long) Json.number(about, "base_bytes", -1);
        boolean needed = about.get("needs_factors") == Boolean.TRUE && factors() == null;
        return Json.of(
                "id", id(),
                "name", about.get("name"),
                "bytes", base().length() + (factors() == null ? 0 : factors().length()),
                "sha256", about.get("sha256"),
                "architecture", about.get("architecture"),
                "factors", factors() != null,
                "adapters", adapters,
                "problem", !whole ? "its file is damaged: remove it, and import it again"
                        : needed ? "its factors.gguf is missing: import that file too" : null);
    }

    private Map<String, Object> describeAdapter(File own, File known) {
        Map<String, Object> about;
        try {
            about = Files.read(known);
        } catch (Failure damaged) {
            return Json.of("name", own.getName(), "examples", null, "bytes", 0L, "created", null,
                    "problem", "its description is damaged");
        }
        File file = new File(own, String.valueOf(about.get("file")));
        Object digest = about.get("base_digest");
        String problem = !file.isFile() ? "its file is missing"
                : digest != null && !digest.equals(digest()) ? "was made for another model" : null;
        return Json.of("name", about.get("name"), "examples", about.get("examples"),
                "bytes", file.length(), "created", about.get("created"), "problem", problem);
    }
}
