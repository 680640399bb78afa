package org.edgepack.demo;

import android.app.ActivityManager;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.BatteryManager;
import android.os.Build;
import android.os.PowerManager;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.edgepack.host.Json;

/** What Android tells of the phone. */
final class Device {
    /** Milliseconds between two looks. */
    static final long EVERY = 10000;
    /** By `PowerManager.THERMAL_STATUS_*`; from severe on, Android asks apps to do less. */
    private static final List<String> THERMAL =
            Arrays.asList("none", "light", "moderate", "severe");

    private final Context context;
    private String last = "";

    Device(Context context) {
        this.context = context;
    }

    Map<String, Object> about() {
        String model = Build.MODEL.startsWith(Build.MANUFACTURER)
                ? Build.MODEL : Build.MANUFACTURER + " " + Build.MODEL;
        return Json.of("name", model, "cores", Runtime.getRuntime().availableProcessors(),
                "memory", memory().totalMem, "android", Build.VERSION.RELEASE);
    }

    Map<String, Object> now() {
        Map<String, Object> found = condition();
        found.put("memory_free", memory().availMem);
        return found;
    }

    /** Whether battery or heat are others than at the last look. */
    boolean hasChanged() {
        String now = Json.write(condition());
        boolean changed = !now.equals(last);
        last = now;
        return changed;
    }

    private Map<String, Object> condition() {
        Intent battery = context.registerReceiver(
                null, new IntentFilter(Intent.ACTION_BATTERY_CHANGED));
        int level = battery == null ? -1 : battery.getIntExtra(BatteryManager.EXTRA_LEVEL, -1);
        int scale = battery == null ? 0 : battery.getIntExtra(BatteryManager.EXTRA_SCALE, 0);
        int plugged = battery == null ? 0 : battery.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0);
        int thermal = Newer.thermalStatus(
                (PowerManager) context.getSystemService(Context.POWER_SERVICE));
        return Json.of("battery", level < 0 || scale <= 0 ? null : (Object) (level / (double) scale),
                "charging", plugged != 0,
                "thermal", thermal < 0 ? null : THERMAL.get(Math.min(thermal, THERMAL.size() - 1)));
    }

    private ActivityManager.MemoryInfo memory() {
        ActivityManager.MemoryInfo info = new ActivityManager.MemoryInfo();
        ((ActivityManager) context.getSystemService(Context.ACTIVITY_SERVICE)).getMemoryInfo(info);
        return info;
    }
}
